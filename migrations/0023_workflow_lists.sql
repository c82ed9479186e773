-- Runs of a rule in one state, newest first: who looks for the failed ones reads no others.
create index workflow_runs_of_rule_state on workflow_runs (tenant_key, rule_id, state, id desc);
