-- Publishing by two persons, and with a preview at hand.

-- Who has saved the draft since it was last published, and in which revision: {"<user id>": revision}. None of them approves it.
alter table rule_drafts add column authors jsonb not null default '{}';
alter table rule_publish_requests add column authors jsonb not null default '{}';
alter table rule_publish_requests add column revision int;

-- What the preview that whoever published looked at said.
alter table rule_publish_requests add column preview jsonb;
alter table rule_versions add column preview jsonb;

-- The revision of the draft that a preview tried; null where it tried a version.
alter table rule_previews add column revision int;
