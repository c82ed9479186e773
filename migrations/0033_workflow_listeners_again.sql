-- What 0025_workflow_listeners meant for runs that stood already: those that wait for an event, now or later, listen. Its update found no
-- row, as the owner sees none of a tenant while row security is forced. Without this such a run hears no event and waits until its time-out.
alter table workflow_runs no force row level security;
update workflow_runs set listens = true where cardinality(awaits) > 0 and not listens;
alter table workflow_runs force row level security;
