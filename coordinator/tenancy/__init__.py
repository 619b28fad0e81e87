"""Who the fleet is run for and by which rules: clients, applications, SLAs, policies and events, as registered over the API. Pure."""
