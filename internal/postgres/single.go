package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tidemark/internal/exit"
)

// aside is the suffix under which Recover keeps signal files during its run.
const aside = ".tidemark-aside"

// signalFiles tell the server that it is a standby or recovers to a target.
// The single-user server refuses both.
var signalFiles = []string{"standby.signal", "recovery.signal"}

// Recover brings a cluster that was not shut down cleanly to a clean shutdown:
// the single-user server runs crash recovery and writes a shutdown checkpoint.
// Signal files are taken aside for the run and put back whatever happens; a
// run that was killed is mended by the next one. The run syncs what it writes:
// nobody syncs the whole directory afterwards. Server.Args count here too.
func (s *Server) Recover(ctx context.Context) (err error) {
	if running, err := IsRunning(s.DataDir); err != nil {
		return err
	} else if running {
		return ErrRunning
	}
	if os.Geteuid() == 0 {
		return exit.New(exit.Refused, "run as the owner of the data directory", "PostgreSQL does not run as root")
	}
	for _, name := range signalFiles {
		path := filepath.Join(s.DataDir, name)
		if exists(path) {
			if err := os.Rename(path, path+aside); err != nil {
				return err
			}
		}
	}
	defer func() { err = errors.Join(err, RestoreSignalFiles(s.DataDir)) }()

	args := []string{"--single", "-D", s.DataDir}
	if s.ConfigFile != "" {
		args = append(args, "-c", "config_file="+s.ConfigFile)
	}
	args = append(append(args, s.Args...), "-c", "restore_command=", "template1")
	cmd := exec.CommandContext(ctx, s.Bin.Path("postgres"), args...)
	cmd.Env = serverEnv()
	out, err := cmd.CombinedOutput() // standard input is the null device
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(lines) > tailLines {
			lines = lines[len(lines)-tailLines:]
		}
		return exit.Wrap(err, exit.Failed, "the server said:\n"+strings.Join(lines, "\n"), "crash recovery of %s with the single-user server failed", s.DataDir)
	}
	return nil
}

// RestoreSignalFiles puts back what a killed Recover left aside in a data directory.
func RestoreSignalFiles(dir string) error {
	for _, name := range signalFiles {
		path := filepath.Join(dir, name)
		if err := os.Rename(path+aside, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("putting %s back: %w", name, err)
		}
	}
	return nil
}
