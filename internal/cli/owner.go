package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"tidemark/internal/exit"
)

// BecomeOwner makes a process that runs as root the owner of a data
// directory, for good, before anything is written: PostgreSQL refuses to run
// as root, and a data directory must not get files of root's. For a directory
// that is not there yet the owner is the one named (a user or a uid), else
// that of the nearest directory above it. It does nothing for other users.
func BecomeOwner(dir, owner string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := ownerOf(dir, owner)
	if err != nil {
		return err
	}
	if err := become(u); err != nil {
		return fmt.Errorf("cannot become %s, the owner of %s: %w", u.Username, dir, err)
	}
	return nil
}

func ownerOf(dir, owner string) (*user.User, error) {
	if _, err := os.Lstat(dir); owner != "" && errors.Is(err, fs.ErrNotExist) {
		return lookupUser(owner)
	}
	at, info, err := nearest(dir)
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("cannot tell who owns %s", at)
	}
	if st.Uid == 0 {
		hint := "chown the directory to the user that PostgreSQL runs as"
		if at != dir {
			hint = "name the user that PostgreSQL runs as with --owner, or create the directory and chown it"
		}
		return nil, exit.New(exit.Refused, hint, "%s belongs to root, and PostgreSQL does not run as root", at)
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(st.Uid), 10))
	if err != nil {
		// An owner without a name is common in containers.
		id := strconv.FormatUint(uint64(st.Uid), 10)
		return &user.User{Uid: id, Gid: strconv.FormatUint(uint64(st.Gid), 10), Username: id, HomeDir: "/"}, nil
	}
	return u, nil
}

func lookupUser(owner string) (*user.User, error) {
	u, err := user.Lookup(owner)
	if err != nil {
		if u, err = user.LookupId(owner); err != nil {
			return nil, exit.New(exit.Usage, "", "--owner: there is no user %q", owner)
		}
	}
	if u.Uid == "0" {
		return nil, exit.New(exit.Refused, "name the user that PostgreSQL runs as", "--owner: PostgreSQL does not run as root")
	}
	return u, nil
}

// nearest returns dir or the nearest directory above it that exists.
func nearest(dir string) (string, fs.FileInfo, error) {
	at, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	for {
		info, err := os.Stat(at)
		if err == nil {
			return at, info, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || at == "/" {
			return "", nil, err
		}
		at = filepath.Dir(at)
	}
}

// become changes the whole process: groups first, the user last.
func become(u *user.User) error {
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	groups := []int{gid}
	if ids, err := u.GroupIds(); err == nil {
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil && n != gid {
				groups = append(groups, n)
			}
		}
	}
	if err := errors.Join(syscall.Setgroups(groups), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return settle(u)
}

// settle gives the process the surroundings of its new user: programs that it
// starts look at HOME, and need a working directory that they may enter.
func settle(u *user.User) error {
	for k, v := range map[string]string{"HOME": u.HomeDir, "USER": u.Username, "LOGNAME": u.Username} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	if _, err := os.ReadDir("."); err != nil {
		return os.Chdir("/")
	}
	return nil
}
