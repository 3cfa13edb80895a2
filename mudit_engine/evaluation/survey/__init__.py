"""Listening tests: a questionnaire as a static page, and what its answers say."""
