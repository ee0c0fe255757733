// What is asked of the server: read once for all that look at it, and kept as a log without secrets.
import querystring from 'node:querystring';

import { decodeJwt } from 'jose';

import { digest } from './storage.mjs';

const MOST_BYTES = 1 << 16;
const JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
const SAID = ['grant_type', 'scope', 'resource', 'audience', 'requested_token_type', 'token_type_hint'];

function claims(token) {
  try {
    return decodeJwt(token);
  } catch {
    return {};
  }
}

function clientOf(ctx, form) {
  if (form.client_id) return form.client_id;
  if (form.client_assertion) return claims(form.client_assertion).sub;
  const [scheme, pair] = ctx.get('authorization').split(' ');
  if (scheme.toLowerCase() !== 'basic' || !pair) return undefined;
  return querystring.unescape(Buffer.from(pair, 'base64').toString().split(':')[0].replaceAll('+', ' '));
}

// Where no client says who it is, an assertion does: Google's service accounts have no other credentials.
export async function readForm(ctx, next) {
  if (ctx.method !== 'POST' || !ctx.is('urlencoded')) return next();
  const chunks = [];
  let size = 0;
  for await (const chunk of ctx.req) {
    size += chunk.length;
    if (size > MOST_BYTES) ctx.throw(413);
    chunks.push(chunk);
  }
  const form = querystring.parse(Buffer.concat(chunks).toString());
  let client = clientOf(ctx, form);
  if (client === undefined && form.grant_type === JWT_BEARER && typeof form.assertion === 'string') {
    client = claims(form.assertion).iss;
    if (typeof client === 'string') form.client_id = client;
  }
  ctx.req.body = form;
  ctx.state.client = client;
  return next();
}

function parsed(text) {
  try {
    return text === undefined ? undefined : JSON.parse(text);
  } catch {
    return text;
  }
}

// One entry for each request that was answered or would have been.
export function record(log) {
  return async (ctx, next) => {
    const form = { ...(ctx.req.body ?? {}) };
    const entry = { endpoint: ctx.path, method: ctx.method, client_id: ctx.state.client ?? null, misbehaviours: [] };
    for (const name of SAID) entry[name] = form[name] ?? null;
    entry.authorization_details = parsed(form.authorization_details) ?? null;
    entry.token_sha256 = typeof form.token === 'string' ? digest(form.token) : null;
    log.push(entry);
    ctx.state.entry = entry;
    try {
      await next();
    } finally {
      entry.status = ctx.status;
      const answer = ctx.state.issued ?? ctx.body;
      entry.error = answer?.error ?? null;
      entry.granted = answer?.access_token ? answer.scope ?? '' : null;
      entry.access_token_sha256 = answer?.access_token ? digest(answer.access_token) : null;
      entry.refresh_token_sha256 = answer?.refresh_token ? digest(answer.refresh_token) : null;
    }
  };
}
