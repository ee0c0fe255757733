"""`aws.call`: one operation of AWS's, as the step's own session."""
