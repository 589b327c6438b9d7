package backup_test

import (
	"testing"

	"tidemark/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m, "dbbackup", "dbrecover") }
