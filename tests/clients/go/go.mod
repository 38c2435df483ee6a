module stead.dev/tests/clients/go

go 1.24
