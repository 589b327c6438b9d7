package repo

import (
	"fmt"
	"strings"
)

// FetchCommand returns the restore_command by which a server fetches a
// cluster's WAL from the first of the repositories that has it. program is
// dbrecover, by an absolute path. The server replaces %f and %p; every other
// percent sign is doubled.
func FetchCommand(program string, systemID uint64, locations ...string) string {
	return SealedFetchCommand(program, "", systemID, locations...)
}

// SealedFetchCommand is FetchCommand for encrypted repositories: identity is
// the file with the secret key, "" for none.
func SealedFetchCommand(program, identity string, systemID uint64, locations ...string) string {
	quoted := func(s string) string { return strings.ReplaceAll(ShellQuote(s), "%", "%%") }
	repos := ""
	for _, l := range locations {
		repos += " --repo " + quoted(l)
	}
	if identity != "" {
		repos += " --identity " + quoted(identity)
	}
	return fmt.Sprintf(`%s fetch%s --cluster %d "%%f" "%%p"`, quoted(program), repos, systemID)
}

// ShellQuote quotes a word for a shell where it needs quotes.
func ShellQuote(s string) string {
	plain := s != ""
	for _, c := range s {
		plain = plain && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_-./:=,@+", c))
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
