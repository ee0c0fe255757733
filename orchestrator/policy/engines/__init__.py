"""The policy engines that come with the orchestrator, each behind `orchestrator.policy.types.PolicyEngine`."""
