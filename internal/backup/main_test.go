package backup_test

import (
	"os"
	"testing"

	"tidemark/internal/pgtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(measureEnv) != "" {
		runMeasured()
		return
	}
	pgtest.Main(m, "dbbackup", "dbrecover")
}
