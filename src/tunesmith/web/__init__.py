"""The pages under `/` of `tunesmith serve`: a route shows what a flow function says, a post does what a command does. No arithmetic."""
