// Runs one scenario in Node: its name and what it is given come as arguments, what came of it goes out as JSON lines.

import * as scenarios from "./scenarios.js";

type Scenario = (given: scenarios.Given, show: scenarios.Show) => Promise<unknown>;

const [name = "", given = "{}"] = process.argv.slice(2);
const scenario = (scenarios as unknown as Record<string, Scenario>)[name];
if (scenario === undefined) throw new Error(`There is no scenario ${name}.`);
const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
const result = await scenario(JSON.parse(given) as scenarios.Given, (text) => say({ shown: text.length }));
say({ result });
