"""Taking secrets out of what is logged and told, and seeing them in what a step puts out."""
