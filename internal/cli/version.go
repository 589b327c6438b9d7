package cli

import (
	"runtime/debug"
)

// release is the version that the next tag will carry.
const release = "0.1.0"

// Version returns the release and, where the build knows it, the revision.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return release
	}
	var rev, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			rev = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ", modified"
		}
	}
	if rev == "" {
		return release
	}
	return release + " (" + rev + dirty + ")"
}
