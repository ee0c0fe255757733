// An OpenID provider for tests: `oidc-provider` as it is, with a page of ours on which people say who they are, or no.
// What it needs is one JSON object on standard input; once it can be asked it prints one line.
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import process from 'node:process';
import querystring from 'node:querystring';

import { SignJWT, decodeJwt, exportJWK, generateKeyPair } from 'jose';
import { Provider } from 'oidc-provider';

const config = JSON.parse(readFileSync(0, 'utf8'));
const issuer = `http://127.0.0.1:${config.port}`;
const issued = [];
let lie;

const pairs = {};
for (const alg of ['RS256', 'ES256']) pairs[alg] = await generateKeyPair(alg, { extractable: true });
const keys = await Promise.all(Object.entries(pairs).map(async ([alg, { privateKey }]) => (
  { ...(await exportJWK(privateKey)), alg, use: 'sig', kid: alg }
)));

const provider = new Provider(issuer, {
  clients: config.clients,
  claims: { openid: ['sub'], profile: ['preferred_username'], groups: ['groups'] },
  conformIdTokenClaims: false, // else they are with `userinfo` alone
  cookies: { keys: [randomBytes(16).toString('hex')] },
  findAccount: (ctx, id) => (
    config.accounts[id] && { accountId: id, claims: () => ({ sub: id, ...config.accounts[id] }) }
  ),
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  jwks: { keys },
  features: { devInteractions: { enabled: false } },
});

const PAGE = `<!doctype html><html lang="en"><title>Provider</title><link rel="icon" href="data:,"><h1>Who are you?</h1><form method="post">
<label>Name <input name="name"></label><button name="answer" value="yes">Agree</button>
<button name="answer" value="no">Refuse</button></form></html>`;

async function formOf(req) {
  const chunks = [];
  for await (const chunk of req) chunks.push(chunk);
  return querystring.parse(Buffer.concat(chunks).toString());
}

async function interaction(ctx, next) {
  if (!ctx.path.startsWith('/interaction/')) return next();
  if (ctx.method === 'GET') {
    ctx.type = 'html';
    ctx.body = PAGE;
    return undefined;
  }
  const { params } = await provider.interactionDetails(ctx.req, ctx.res);
  const { name, answer } = await formOf(ctx.req);
  let result = { error: 'access_denied', error_description: 'they have said no' };
  if (answer === 'yes') {
    const grant = new provider.Grant({ accountId: name, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    result = { login: { accountId: name }, consent: { grantId: await grant.save() } };
  }
  ctx.status = 303;
  ctx.redirect(await provider.interactionResult(ctx.req, ctx.res, result));
  return undefined;
}

// What it has issued, for whoever looks for it elsewhere; and from now on something else than the truth in ID tokens.
async function backDoor(ctx, next) {
  if (ctx.path !== '/_test') return next();
  if (ctx.method === 'POST') lie = JSON.parse(Object.keys(await formOf(ctx.req))[0]);
  ctx.body = issued;
  return undefined;
}

async function lying(ctx, next) {
  await next();
  if (ctx.path !== '/token' || !ctx.body?.id_token) return;
  if (lie) {
    const { alg, ...claims } = lie;
    const key = alg === 'HS256' ? Buffer.from(config.clients[0].client_secret) : pairs.RS256.privateKey;
    const said = { ...decodeJwt(ctx.body.id_token), ...claims };
    const header = { alg: alg ?? 'RS256', kid: 'RS256' };
    ctx.body = { ...ctx.body, id_token: await new SignJWT(said).setProtectedHeader(header).sign(key) };
  }
  issued.push(ctx.body);
}

for (const each of [backDoor, interaction, lying]) provider.use(each);
provider.on('server_error', (ctx, error) => process.stderr.write(`${ctx.path}: ${error.stack}\n`));
createServer(provider.callback()).listen(config.port, '127.0.0.1', () => process.stdout.write('ready\n'));
