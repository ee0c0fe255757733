"""What is drawn as SVG: where everything stands is worked out first, without a drawing."""
