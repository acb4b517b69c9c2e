"""Questions answered with any weights, what is made of the answers, and what is kept of them."""
