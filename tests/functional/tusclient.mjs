// An upload by tus-js-client: node tusclient.mjs MODULES URL FILE [CHUNK]
import { createReadStream, statSync } from 'node:fs'
import { createRequire } from 'node:module'

const [modules, endpoint, path, chunk] = process.argv.slice(2)
const tus = createRequire(`${modules}/`)('tus-js-client')

new tus.Upload(createReadStream(path), {
  endpoint,
  uploadSize: statSync(path).size,
  chunkSize: chunk ? Number(chunk) : Infinity,
  retryDelays: Array(50).fill(200),
  metadata: { filename: path.split('/').pop(), filetype: 'application/octet-stream' },
  onError: (error) => {
    console.log(`failed: ${error.message}`)
    process.exitCode = 1
  },
  onSuccess: () => console.log('done'),
}).start()
