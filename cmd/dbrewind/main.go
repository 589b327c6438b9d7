// Dbrewind brings a cluster that left the common history back onto it.
package main

import (
	"os"

	"tidemark/internal/cli"
)

func main() {
	os.Exit(cli.Main("dbrewind", description, &commands{}))
}
