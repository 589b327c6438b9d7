package docs

import (
	"tidemark/internal/backup"
	"tidemark/internal/cluster"
	"tidemark/internal/recovery"
	"tidemark/internal/rewind"
)

// documents lists the verbs and what they print with --json.
var documents = []struct {
	verb     string
	document any
}{
	{"dbbackup init", backup.InitResult{}},
	{"dbbackup create", backup.Result{}},
	{"dbbackup create --plain", backup.PlainResult{}},
	{"dbbackup push", backup.PushResult{}},
	{"dbbackup list", backup.Listing{}},
	{"dbrecover restore", recovery.RestoreResult{}},
	{"dbrecover run", recovery.RunResult{}},
	{"dbrewind check", rewind.Report{}},
	{"dbrewind run", rewind.Result{}},
	{"dbctl status", cluster.StatusReport{}},
	{"dbctl switchover, promote and rejoin", cluster.Report{}},
}
