"""Records, errors, chat rendering, store, statistics, configuration: what every floor stands on. Knows no room."""
