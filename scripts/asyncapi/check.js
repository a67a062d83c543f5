// Checks that a document is AsyncAPI; prints what is not, and ends with 1 then. (A test of e2e-tests checks its examples.)
import {readFileSync} from 'node:fs';
import {Parser} from '@asyncapi/parser';

const file = process.argv[2];
const {diagnostics} = await new Parser().parse(readFileSync(file, 'utf8'));
for (const {path, message, range} of diagnostics) {
  console.log(`${file}:${range.start.line + 1}: ${path.join('.')}: ${message}`);
}
process.exitCode = diagnostics.length > 0 ? 1 : 0;
