package recovery

import (
	"tidemark/internal/postgres"
	"tidemark/internal/repo"
)

// Then is what a server does once the target is reached.
type Then string

// What can be done at the target; the values are the server's.
const (
	Promote Then = "promote"
	Pause   Then = "pause"
	Stopped Then = "shutdown"
)

// recoverySettings returns what a server needs to recover to the target, and
// nothing that another recovery may have left.
func recoverySettings(r *Resolution, restoreCommand string, then Then, archiving bool) []postgres.Setting {
	values := r.Target.settings()
	list := []postgres.Setting{
		{Name: "restore_command", Value: restoreCommand},
		{Name: "recovery_target_timeline", Value: r.Timeline.String()},
		{Name: "recovery_target_action", Value: string(then)},
	}
	inclusive := "true"
	if r.Target.Exclusive {
		inclusive = "false"
	}
	list = append(list,
		postgres.Setting{Name: "recovery_target_inclusive", Value: inclusive},
		// These belong to the cluster that was backed up, not to its recovery:
		// a delay, a command that deletes from the archive, one that runs at
		// the end.
		postgres.Setting{Name: "recovery_min_apply_delay", Value: "0"},
		postgres.Setting{Name: "archive_cleanup_command"},
		postgres.Setting{Name: "recovery_end_command"},
		postgres.Setting{Name: "primary_conninfo", Reset: true},
		postgres.Setting{Name: "primary_slot_name", Reset: true},
		postgres.Setting{Name: "promote_trigger_file", Reset: true},
	)
	if !archiving {
		list = append(list, postgres.Setting{Name: "archive_mode", Value: "off"})
	}
	return append(list, target(values)...)
}

// target returns the settings that name the target. Those that are not used
// are emptied: a postgresql.conf that came with the backup may set them. They come first,
// for a server complains of two targets even when the second one is empty.
func target(values map[string]string) []postgres.Setting {
	var empty, set []postgres.Setting
	for _, name := range postgres.RecoveryTargets {
		if s := (postgres.Setting{Name: name, Value: values[name]}); s.Value == "" {
			empty = append(empty, s)
		} else {
			set = append(set, s)
		}
	}
	return append(empty, set...)
}

// ownSettings are those that a recovery wrote and that have no use once it is
// over. archive_mode stays: a copy that was told not to archive shall not begin.
func ownSettings() []postgres.Setting {
	var list []postgres.Setting
	for _, s := range recoverySettings(&Resolution{}, "", Promote, true) {
		list = append(list, postgres.Setting{Name: s.Name, Reset: true})
	}
	return list
}

// ShellQuote quotes a word for a shell where it needs quotes.
func ShellQuote(s string) string { return repo.ShellQuote(s) }
