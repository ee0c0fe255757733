// An OAuth 2.0 authorization server: `oidc-provider` with what it needs as one JSON object on standard input.
// Once it can be asked it prints one line, `{"issuer": ...}`. Started by server.py.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import process from 'node:process';

import { Provider } from 'oidc-provider';

import { adminRoutes } from './admin.mjs';
import { jwtBearer, tokenExchange } from './grants.mjs';
import { Misbehaviours } from './misbehaviours.mjs';
import { providerConfiguration, signingKeys } from './provider.mjs';
import { readForm, record } from './requests.mjs';
import { Store } from './storage.mjs';

const config = JSON.parse(readFileSync(0, 'utf8'));
const issuer = `http://127.0.0.1:${config.port}`;

const store = new Store();
const log = [];
const misbehaviours = new Misbehaviours();
misbehaviours.plan(config.misbehaviours);

const provider = new Provider(issuer, providerConfiguration(config, await signingKeys(), store));
const common = ['scope', 'resource', 'authorization_details'];
provider.registerGrantType(
  'urn:ietf:params:oauth:grant-type:jwt-bearer',
  jwtBearer(provider, config),
  ['assertion', ...common],
  ['resource'],
);
provider.registerGrantType(
  'urn:ietf:params:oauth:grant-type:token-exchange',
  tokenExchange(provider, config),
  ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type', 'audience', ...common],
  ['resource', 'audience'],
);
provider.on('server_error', (ctx, error) => process.stderr.write(`${ctx.path}: ${error.stack}\n`));
provider.use(adminRoutes(provider, { config, store, log, misbehaviours }));
provider.use(readForm);
provider.use(record(log));
provider.use(misbehaviours.middleware(provider));

process.on('SIGTERM', () => process.exit(0));
createServer(provider.callback()).listen(config.port, '127.0.0.1', () => {
  process.stdout.write(`${JSON.stringify({ issuer })}\n`);
});
