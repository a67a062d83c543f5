package main

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// tokenKey is the metadata in which both services give, and order-service takes, a consistency token.
const tokenKey = "x-consistency-token"

// tokenSession lets a call see what was written just before it, whichever service wrote it: it remembers the last token
// that it was given and sends it along. Keep one for each user of your program, not one for all.
type tokenSession struct {
	token atomic.Pointer[string]
}

func (s *tokenSession) intercept(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if token := s.token.Load(); token != nil {
		ctx = metadata.AppendToOutgoingContext(ctx, tokenKey, *token)
	}
	var header metadata.MD
	err := invoke(ctx, method, request, reply, conn, append(options, grpc.Header(&header))...)
	if tokens := header.Get(tokenKey); len(tokens) > 0 {
		s.token.Store(&tokens[0])
	}
	return err
}
