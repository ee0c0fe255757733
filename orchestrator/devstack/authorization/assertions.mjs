// JWTs of issuers that the server trusts: who they speak of, after RFC 7523, 3.
import { createLocalJWKSet, createRemoteJWKSet, decodeJwt, jwtVerify } from 'jose';
import { errors } from 'oidc-provider';

const ALGORITHMS = ['RS256', 'PS256', 'ES256', 'EdDSA', 'Ed25519'];

export function refused(what, error = 'invalid_grant', status = 400) {
  const refusal = new errors.CustomOIDCProviderError(error, what);
  refusal.statusCode = status;
  refusal.status = status;
  return refusal;
}

function keysOf(issuer) {
  return issuer.jwks ? createLocalJWKSet(issuer.jwks) : createRemoteJWKSet(new URL(issuer.jwks_uri), { cooldownDuration: 0 });
}

// The account that the issuer's `sub` is.
function account(issuer, subject) {
  if (issuer.subjects === null) return subject;
  if (!Object.hasOwn(issuer.subjects, subject)) throw refused('the issuer may not speak of this subject');
  return issuer.subjects[subject];
}

// `use`: `jwt-bearer`, `token-exchange` or `actor`. Gives the claims, and the account of `sub`.
export async function verified(ctx, config, token, use) {
  let claimed;
  try {
    claimed = decodeJwt(token);
  } catch {
    throw refused('it is no JWT');
  }
  const { clientId } = ctx.oidc.client;
  const issuer = config.issuers.find((each) => (
    each.issuer === claimed.iss && each.uses.includes(use) && (each.clients?.includes(clientId) ?? true)
  ));
  if (!issuer) throw refused('the issuer is not trusted');
  const audience = issuer.audiences ?? [ctx.oidc.issuer, ctx.oidc.urlFor('token')];
  const expected = { issuer: issuer.issuer, audience, algorithms: ALGORITHMS, requiredClaims: ['exp', 'sub', 'aud'] };
  let claims;
  try {
    ({ payload: claims } = await jwtVerify(token, keysOf(issuer), expected));
  } catch (error) {
    throw refused(error.message);
  }
  const since = claims.iat ?? Math.floor(Date.now() / 1000);
  if (since > Math.floor(Date.now() / 1000)) throw refused('it is of the future');
  if (claims.exp - since > issuer.longest_life) throw refused('it lives too long');
  const { ReplayDetection } = ctx.oidc.provider;
  if (issuer.once && !(claims.jti && await ReplayDetection.unique(claims.iss, claims.jti, claims.exp))) {
    throw refused('it has no jti, or was used before');
  }
  return { claims, account: use === 'actor' ? claims.sub : account(issuer, claims.sub) };
}
