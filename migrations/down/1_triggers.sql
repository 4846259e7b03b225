-- First what writers meet, so that nothing fires into functions that are about to go.
drop trigger if exists status_indexer_insert on {{runs}};
drop trigger if exists status_indexer_heartbeat on {{runs}};
drop trigger if exists status_indexer_insert on {{metadata}};
drop trigger if exists status_indexer_update on {{metadata}};
drop trigger if exists status_indexer_delete on {{metadata}};
