"""How the gateways of a cluster reach each other. A gateway alone has `memory`."""
