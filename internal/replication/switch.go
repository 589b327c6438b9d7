package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
)

// switchedOff is what Stop keeps so that Start can turn receiving on again.
type switchedOff struct {
	// AutoConf is what postgresql.auto.conf said, nil where it said nothing.
	AutoConf *string `json:"primary_conninfo"`
}

func (s *standby) switchFile() string {
	return filepath.Join(s.Dir, volume.OwnDir, "receiving.json")
}

// receivingOff takes primary_conninfo away: the server then receives nothing
// and stays readable.
func (s *standby) receivingOff() (changed bool, err error) {
	if _, err := s.FS.Lstat(s.switchFile()); err == nil {
		return false, nil
	}
	conf, err := volume.ReadFile(s.FS, filepath.Join(s.Dir, postgres.AutoConfFile), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	var keep switchedOff
	if value, ok := postgres.ConfValue(conf, "primary_conninfo"); ok {
		keep.AutoConf = &value
	}
	data, err := json.Marshal(keep)
	if err != nil {
		return false, err
	}
	if _, err := volume.MkdirAll(s.FS, filepath.Dir(s.switchFile()), 0o700); err != nil {
		return false, err
	}
	if err := volume.WriteFile(s.FS, s.switchFile(), data, 0o600); err != nil {
		return false, err
	}
	return true, postgres.EditAutoConf(s.FS, s.Dir, []postgres.Setting{{Name: "primary_conninfo"}})
}

// receivingOn undoes receivingOff.
func (s *standby) receivingOn() (changed bool, err error) {
	data, err := volume.ReadFile(s.FS, s.switchFile(), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var kept switchedOff
	if err := json.Unmarshal(data, &kept); err != nil {
		return false, fmt.Errorf("%s: %w", s.switchFile(), err)
	}
	setting := postgres.Setting{Name: "primary_conninfo", Reset: kept.AutoConf == nil}
	if kept.AutoConf != nil {
		setting.Value = *kept.AutoConf
	}
	// Somebody may have set another primary meanwhile: that counts then.
	conf, err := volume.ReadFile(s.FS, filepath.Join(s.Dir, postgres.AutoConfFile), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if now, ok := postgres.ConfValue(conf, "primary_conninfo"); !ok || now == "" {
		if err := postgres.EditAutoConf(s.FS, s.Dir, []postgres.Setting{setting}); err != nil {
			return false, err
		}
	}
	return true, volume.RemoveDurable(s.FS, s.switchFile())
}
