// The configuration of `oidc-provider`, out of ours.
import { randomBytes } from 'node:crypto';

import { exportJWK, generateKeyPair } from 'jose';
import { errors } from 'oidc-provider';
import MemoryAdapter from 'oidc-provider/lib/adapters/memory_adapter.js';

const REFRESH_SECONDS = 14 * 24 * 3600;

export async function signingKeys() {
  const made = ['RS256', 'ES256'].map(async (alg) => {
    const { privateKey } = await generateKeyPair(alg, { extractable: true });
    return { ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg}-${randomBytes(4).toString('hex')}` };
  });
  return Promise.all(made);
}

function metadata(client) {
  return {
    client_id: client.client_id,
    client_secret: client.secret ?? undefined,
    jwks: client.jwks ?? undefined,
    jwks_uri: client.jwks_uri ?? undefined,
    grant_types: client.grant_types,
    redirect_uris: [],
    response_types: [],
    token_endpoint_auth_method: client.auth_method,
    authorization_details_types: client.details_types,
    dpop_bound_access_tokens: client.requires_dpop,
  };
}

// RFC 9396, 2: which actions on which things; a member that is not known is refused.
function detailsType(allowed) {
  const refuse = (what) => {
    throw new errors.InvalidAuthorizationDetails(what);
  };
  const known = new Set(['type', 'actions', 'identifier', ...Object.keys(allowed.members)]);
  return {
    validate(ctx, detail) {
      for (const member of Object.keys(detail)) {
        if (!known.has(member)) refuse(`member ${member} is not supported`);
      }
      if (!Array.isArray(detail.actions) || !detail.actions.length) refuse('actions are missing');
      if (!detail.actions.every((action) => allowed.actions.includes(action))) refuse('an action is not supported');
      if (allowed.identifiers && !allowed.identifiers.includes(detail.identifier)) refuse('identifier is not supported');
      for (const [member, values] of Object.entries(allowed.members)) {
        const given = detail[member] === undefined ? [] : [detail[member]].flat();
        if (!given.every((value) => values.includes(value))) refuse(`a value of ${member} is not supported`);
      }
    },
  };
}

export function providerConfiguration(config, keys, store) {
  const client = (id) => config.clients.find((each) => each.client_id === id);
  const resourceServer = (ctx, indicator, { clientId }) => {
    const resource = config.resources.find((each) => each.indicator === indicator);
    if (!resource) throw new errors.InvalidTarget();
    const scopes = resource.scopes.filter((scope) => client(clientId).scopes?.includes(scope) ?? true);
    if (config.refuse_excess_scope && ![...ctx.oidc.requestParamScopes].every((scope) => scopes.includes(scope))) {
      throw new errors.InvalidScope('requested scope is not allowed', ctx.oidc.params.scope);
    }
    return {
      scope: scopes.join(' '),
      audience: resource.audience ?? resource.indicator,
      accessTokenTTL: ctx.state.seconds ?? resource.ttl,
      accessTokenFormat: resource.format,
      jwt: { sign: { alg: resource.algorithm } },
    };
  };
  const asked = (ctx, token, source) => {
    const text = ctx.oidc.params.authorization_details;
    return text === undefined ? source?.rar : JSON.parse(text);
  };
  return {
    adapter: (model) => new MemoryAdapter(model, store),
    clients: config.clients.map(metadata),
    clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt', 'none'],
    clockTolerance: 0,
    cookies: { keys: [randomBytes(16).toString('hex')] },
    extraTokenClaims: (ctx) => (ctx?.state.actor ? { act: ctx.state.actor } : undefined),
    // Without the dispatcher that refuses addresses of this machine: that is where all others of the stack are.
    fetch: (url, { dispatcher, ...options }) => globalThis.fetch(url, options),
    findAccount: (ctx, id) => (
      config.accounts.includes(id) ? { accountId: id, claims: () => ({ sub: id }) } : undefined
    ),
    issueRefreshToken: () => false,
    jwks: { keys },
    rotateRefreshToken: (ctx) => client(ctx.oidc.client.clientId).rotates,
    scopes: ['offline_access'],
    ttl: { RefreshToken: REFRESH_SECONDS, Grant: REFRESH_SECONDS },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      dPoP: { enabled: true },
      rpInitiatedLogout: { enabled: false },
      userinfo: { enabled: false },
      introspection: {
        enabled: true,
        allowedPolicy: (ctx, { clientId }, token) => (
          token.clientId === clientId || client(clientId).introspects.includes(token.aud)
        ),
      },
      revocation: { enabled: true, allowedPolicy: (ctx, { clientId }, token) => token.clientId === clientId },
      resourceIndicators: {
        enabled: true,
        defaultResource: (ctx, { clientId }) => client(clientId).default_resource ?? undefined,
        getResourceServerInfo: resourceServer,
      },
      richAuthorizationRequests: {
        enabled: true,
        types: Object.fromEntries(config.details_types.map((each) => [each.name, detailsType(each)])),
        authorizationDetailsForGrantSource: asked,
        authorizationDetailsForAccessToken: asked,
        authorizationDetailsForIntrospection: (ctx, token) => token.rar,
      },
    },
  };
}
