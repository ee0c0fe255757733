"""A mail service with the paths, documents and errors of the Gmail API, over mailboxes with sample mails."""
