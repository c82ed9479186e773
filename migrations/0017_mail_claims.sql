-- Whose dialogue it is while a mail says sending: the job that claimed it may take it up again after a crash, another job of the same
-- key may not, or one key would be two mails.
alter table mail_messages add column claimed_by text;
