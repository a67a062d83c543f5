// Validates an AsyncAPI document. Prints all errors and exits with 1 if there are any. (e2e-tests check its examples.)
import {readFileSync} from 'node:fs';
import {Parser} from '@asyncapi/parser';

const file = process.argv[2];
const {diagnostics} = await new Parser().parse(readFileSync(file, 'utf8'));
for (const {path, message, range} of diagnostics) {
  console.log(`${file}:${range.start.line + 1}: ${path.join('.')}: ${message}`);
}
process.exitCode = diagnostics.length > 0 ? 1 : 0;
