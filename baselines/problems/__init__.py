"""What is computed: data, cost(plan) and check(plan) of each problem; numpy only."""
