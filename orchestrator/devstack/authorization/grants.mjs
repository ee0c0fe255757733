// The grants that `oidc-provider` leaves to its users: assertions (RFC 7523) and token exchange (RFC 8693).
import { errors } from 'oidc-provider';
import { applyDpopBinding } from 'oidc-provider/lib/helpers/grant_common.js';
import * as helpers from 'oidc-provider/lib/helpers/grants.js';

import { refused, verified } from './assertions.mjs';

const TOKEN_TYPE = 'urn:ietf:params:oauth:token-type:';

const words = (text) => (text ?? '').split(' ').filter(Boolean);

function delegated(config, clientId, account, resource) {
  const scopes = config.delegations
    .filter((each) => each.client_id === clientId && each.subject === account)
    .filter((each) => (each.resource ?? resource) === resource)
    .flatMap((each) => each.scopes);
  return new Set(scopes);
}

// A refresh token as one that the account's owner once agreed to.
export async function mintRefreshToken(provider, client, { account, resource, scope, details }) {
  const grant = new provider.Grant({ clientId: client.clientId, accountId: account });
  grant.addResourceScope(resource, scope);
  const token = new provider.RefreshToken({
    client, accountId: account, grantId: await grant.save(), gty: 'authorization_code', resource, scope, rar: details, rotations: 0,
  });
  return token.save();
}

// An access token for an account, of those scopes that were asked for and are delegated to the client.
async function issue(provider, config, ctx, { account, asked, gty }) {
  const { client } = ctx.oidc;
  if (!config.accounts.includes(account)) throw refused('Invalid email or User ID');
  const dPoP = await helpers.validateDpop(provider, ctx);
  const servers = await helpers.resolveRequestedResources(provider, ctx);
  if (servers.length !== 1) throw new errors.InvalidTarget('exactly one resource must be asked for');
  const [server] = servers;
  const allowed = delegated(config, client.clientId, account, server.identifier());
  for (const scope of words(ctx.state.wider)) allowed.add(scope);
  const scopes = asked.filter((scope) => server.scopes.has(scope) && allowed.has(scope));
  if (!scopes.length || (config.refuse_excess_scope && scopes.length < asked.length)) {
    const what = 'Client is unauthorized to retrieve access tokens using this method, '
      + 'or client not authorized for any of the scopes requested.';
    throw refused(what, 'unauthorized_client', 401);
  }
  const grant = new provider.Grant({ clientId: client.clientId, accountId: account });
  grant.addResourceScope(server.identifier(), scopes.join(' '));
  const token = new provider.AccessToken({ client, accountId: account, grantId: await grant.save(), gty });
  token.resourceServer = server;
  token.scope = scopes.join(' ');
  await applyDpopBinding(provider, ctx, dPoP, token);
  helpers.checkDpopRequired(provider, ctx, dPoP);
  await helpers.applyAuthorizationDetails(provider, ctx, token);
  ctx.oidc.entity('AccessToken', token);
  return {
    accessToken: await token.save(),
    authorizationDetails: token.rar,
    expiresIn: token.expiration,
    scope: token.scope,
    tokenType: token.tokenType,
  };
}

function required(ctx, name) {
  const value = ctx.oidc.params[name];
  if (!value) throw new errors.InvalidRequest(`missing required parameter '${name}'`);
  return value;
}

// The scope is a parameter, or, as Google's service accounts do it, a claim of the assertion.
export function jwtBearer(provider, config) {
  return async (ctx) => {
    const { claims, account } = await verified(ctx, config, required(ctx, 'assertion'), 'jwt-bearer');
    const asked = words(ctx.oidc.params.scope ?? claims.scope);
    ctx.body = helpers.buildTokenResponse(provider, await issue(provider, config, ctx, { account, asked, gty: 'jwt-bearer' }));
  };
}

async function actorOf(ctx, config) {
  const { actor_token: token, actor_token_type: type } = ctx.oidc.params;
  if (!token !== !type) throw new errors.InvalidRequest('actor_token and actor_token_type belong together');
  if (!token) return undefined;
  const { claims } = await verified(ctx, config, token, 'actor');
  return { iss: claims.iss, sub: claims.sub, ...(claims.act ? { act: claims.act } : {}) };
}

// RFC 8693, 4.4: the subject may have said who may act.
function mayAct(subject, actor) {
  const may = subject.may_act;
  if (may && !(actor && Object.entries(may).every(([name, value]) => actor[name] === value))) {
    throw refused('the subject permits another actor');
  }
}

function checkTypes(params) {
  const taken = ['access_token', 'id_token', 'jwt'].map((type) => TOKEN_TYPE + type);
  for (const name of ['subject_token_type', 'actor_token_type']) {
    if (params[name] && !taken.includes(params[name])) throw new errors.InvalidRequest(`${name} is not supported`);
  }
  if (![`${TOKEN_TYPE}access_token`, undefined].includes(params.requested_token_type)) {
    throw new errors.InvalidRequest('requested_token_type is not supported');
  }
}

// RFC 8693, 2.1: a resource by its logical name.
function byAudience(config, params) {
  if (params.audience === undefined) return;
  const named = [params.audience].flat().map((audience) => {
    const resource = config.resources.find((each) => (each.audience ?? each.indicator) === audience);
    if (!resource) throw new errors.InvalidTarget();
    return resource.indicator;
  });
  params.resource = [...new Set([...[params.resource ?? []].flat(), ...named])];
}

export function tokenExchange(provider, config) {
  return async (ctx) => {
    const { params } = ctx.oidc;
    required(ctx, 'subject_token_type');
    checkTypes(params);
    byAudience(config, params);
    const subject = await verified(ctx, config, required(ctx, 'subject_token'), 'token-exchange');
    const actor = await actorOf(ctx, config);
    mayAct(subject.claims, actor);
    ctx.state.actor = actor ?? subject.claims.act;
    const wish = { account: subject.account, asked: words(params.scope), gty: 'token-exchange' };
    const issued = await issue(provider, config, ctx, wish);
    ctx.body = helpers.buildTokenResponse(provider, { ...issued, issuedTokenType: `${TOKEN_TYPE}access_token` });
  };
}
