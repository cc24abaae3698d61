// @tus/server with its S3 store: node tuss3.mjs PORT ENDPOINT BUCKET; keys from the environment
import { S3Store } from '@tus/s3-store'
import { Server } from '@tus/server'

const [port, endpoint, bucket] = process.argv.slice(2)
const server = new Server({
  path: '/',
  datastore: new S3Store({
    useTags: false,
    s3ClientConfig: {
      bucket,
      endpoint,
      region: 'us-east-1',
      forcePathStyle: true,
      credentials: {
        accessKeyId: process.env.AWS_ACCESS_KEY_ID,
        secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY,
      },
    },
  }),
  namingFunction: (_, metadata) => metadata.filename,
})
server.listen({ host: '127.0.0.1', port: Number(port) })
