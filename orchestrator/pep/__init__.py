"""Enforcement for resource services: what a service that receives our tokens imports, and nothing else of the package.

It needs httpx and joserfc. A service begins at `protection` (who calls, and may they?), with `middleware` where it is
an ASGI application; whoever only verifies a JWT of a trusted issuer takes `jwt` and `sources`.
"""
