"""Requests to AWS's Query APIs (STS, IAM): signed with a key that may be anywhere, answers read with care."""
