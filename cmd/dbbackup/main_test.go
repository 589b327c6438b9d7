package main

import (
	"testing"

	"tidemark/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
