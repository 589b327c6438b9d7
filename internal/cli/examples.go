package cli

import "strings"

// longExample is the width in characters from which on an example's comment
// stands above it.
const longExample = 60

// examples are the lines of a help text's examples: the comments of the short
// ones stand below each other, those of long ones above them.
func examples(text string) []string {
	var lines []string
	width := 0
	for line := range strings.Lines(strings.Trim(text, "\n")) {
		line = strings.TrimSpace(line)
		lines = append(lines, line)
		if command, _, ok := comment(line); ok && len(command) < longExample {
			width = max(width, len(command))
		}
	}
	var out []string
	for _, line := range lines {
		command, about, ok := comment(line)
		switch {
		case !ok:
			out = append(out, line)
		case len(command) < longExample:
			out = append(out, command+strings.Repeat(" ", width-len(command))+"  # "+about)
		default:
			out = append(out, "# "+about, command)
		}
	}
	return out
}

// comment splits an example into its command and what is said of it.
func comment(line string) (command, about string, ok bool) {
	command, about, ok = strings.Cut(line, " # ")
	return strings.TrimSpace(command), strings.TrimSpace(about), ok
}
