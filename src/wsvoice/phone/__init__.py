"""The real network: providers' REST APIs, phone numbers pointed at a server and back, tunnels."""
