// The back door, for tests and the demo: look at the state, mint a first refresh token, ask for misbehaviours.
// It is guarded by a token in the header `X-Admin-Token`; to everybody else it does not exist.
import { timingSafeEqual } from 'node:crypto';

import { mintRefreshToken } from './grants.mjs';
import { digest } from './storage.mjs';

async function json(req) {
  const chunks = [];
  for await (const chunk of req) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString());
}

export function adminRoutes(provider, { config, store, log, misbehaviours }) {
  const routes = {
    'GET /_admin/state': () => ({ requests: log, tokens: store.tokens(), misbehaviours: misbehaviours.planned() }),
    'POST /_admin/misbehaviours': (wishes) => misbehaviours.plan(wishes),
    'DELETE /_admin/misbehaviours': () => misbehaviours.clear(),
    'POST /_admin/refresh-tokens': async (wish, ctx) => {
      const client = await provider.Client.find(wish.client_id);
      ctx.assert(client, 400, 'no such client');
      ctx.assert(config.accounts.includes(wish.account), 400, 'no such account');
      ctx.assert(config.resources.some(({ indicator }) => indicator === wish.resource), 400, 'no such resource');
      return { refresh_token: await mintRefreshToken(provider, client, wish) };
    },
  };
  const known = Buffer.from(digest(config.admin_token));
  return async (ctx, next) => {
    if (!ctx.path.startsWith('/_admin/')) return next();
    const route = routes[`${ctx.method} ${ctx.path}`];
    if (!route || !timingSafeEqual(known, Buffer.from(digest(ctx.get('X-Admin-Token'))))) {
      ctx.status = 404;
      return undefined;
    }
    const answer = await route(ctx.method === 'POST' ? await json(ctx.req) : undefined, ctx);
    if (answer === undefined) ctx.status = 204;
    else ctx.body = answer;
    return undefined;
  };
}
