"""Where Q/DQ go: the rules, the planner, and the Placement they make."""
