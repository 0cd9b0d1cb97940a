// Answers every request with one line.
const { createServer } = require("node:http");

createServer((_request, response) => response.end("well")).listen(8000);
