"""OpenAI's API over HTTP. Translates; decides nothing."""
