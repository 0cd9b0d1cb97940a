// Answers every request with one line.
const ms = require("ms");
const { createServer } = require("node:http");

createServer((_request, response) => response.end(`well ${ms(1000)}`)).listen(8000);
