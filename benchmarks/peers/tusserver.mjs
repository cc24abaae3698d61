// @tus/server with its file store: node tusserver.mjs PORT DIRECTORY
import { FileStore } from '@tus/file-store'
import { Server } from '@tus/server'

const [port, directory] = process.argv.slice(2)
const server = new Server({
  path: '/',
  datastore: new FileStore({ directory }),
  namingFunction: (_, metadata) => metadata.filename,
})
server.listen({ host: '127.0.0.1', port: Number(port) })
