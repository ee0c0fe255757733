"""The one question before a step gets credentials, its answer, and the engines that give it."""
