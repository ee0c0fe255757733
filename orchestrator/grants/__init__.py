"""What a step declares that it needs: kinds of grant as data, their normal form, and their SQL."""
