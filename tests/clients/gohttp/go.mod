module stead.dev/tests/clients/gohttp

go 1.24
