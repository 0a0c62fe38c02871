// What goes over the wire, as types. Amounts are decimal credits with at most six places.

/** What is asked of a model. */
export interface Question {
  readonly message: string;
  readonly modelId?: string | undefined;
  readonly maxTokens?: number | undefined;
  readonly temperature?: number | undefined;
  /** What becomes of the answer when nobody reads it: it goes on, or stops after a grace period. */
  readonly onDisconnect?: "continue" | "stop" | undefined;
}

export interface Usage {
  readonly inputTokens: number;
  readonly cachedInputTokens: number;
  readonly outputTokens: number;
  readonly reasoningTokens: number;
}

/** What one stream used and cost. While `settlement` is pending the amounts are null. */
export interface Receipt extends Usage {
  readonly streamingSessionId: string;
  readonly outcome: string;
  readonly modelId: string;
  readonly deliveredTokens: number | null;
  readonly usageSource: "provider" | "counted" | "log";
  readonly reservedCredits: number | null;
  readonly chargedCredits: number | null;
  readonly returnedCredits: number | null;
  readonly balanceAfter: number | null;
  readonly settlement: "settled" | "pending";
  readonly [member: string]: unknown;
}

interface At<Name extends string, Members> {
  /** 1, 2, … without gaps. */
  readonly offset: number;
  readonly event: Name;
  readonly data: Members;
}

export interface Piece {
  readonly text: string;
  readonly tokens: number;
  readonly totalTokens: number;
}

export interface Done {
  readonly status: "complete" | "incomplete";
  /** The whole answer. */
  readonly message: string;
  readonly tokensUsed: number;
  readonly finishReason: string;
  readonly usage: Usage;
  readonly receipt: Receipt;
}

export interface Failed {
  readonly error: string;
  readonly code: string;
  readonly message: string;
  /** Whether asking anew, with a new id, may help. */
  readonly retryable: boolean;
  readonly usage: Usage;
  readonly receipt: Receipt;
}

export interface Opened {
  readonly streamingSessionId: string;
  readonly sessionId: string;
  readonly modelId: string;
  readonly reservedCredits: number;
  readonly resumed: boolean;
}

/** An event of a stream; `done` or `error` is its last. What a newer server adds comes through as it is. */
export type StreamEvent =
  | At<"session", Opened>
  | At<"model", { readonly model: string; readonly fallbackApplied: boolean }>
  | At<"chunk", Piece>
  | At<"reasoning", Piece>
  | At<"done", Done>
  | At<"error", Failed>;

interface Notice<Name extends string, Members> {
  readonly offset: 0;
  readonly event: Name;
  readonly data: Members;
}

/** What an observer is shown: the stream's own events, and notices around them, which have the offset 0. */
export type ObservedEvent =
  | StreamEvent
  | Notice<
      "observer",
      {
        readonly observer: string;
        readonly sessionId: string;
        readonly streamingSessionId: string;
        readonly userId: string;
        readonly modelId: string;
        readonly active: boolean;
      }
    >
  | Notice<"history-start", { readonly streamingSessionId: string; readonly after: number }>
  | Notice<"history-end", { readonly streamingSessionId: string; readonly lastEventId: number }>
  | Notice<"observer-end", { readonly reason: string }>;

/** A stream as it stands; the last four are null while it runs. */
export interface StreamState {
  readonly streamingSessionId: string;
  readonly sessionId: string;
  readonly modelId: string;
  readonly fallbackApplied: boolean;
  readonly state: "active" | "ended";
  readonly createdAt: string;
  readonly outcome: string | null;
  readonly endedAt: string | null;
  readonly usage: Usage | null;
  readonly receipt: Receipt | null;
}

export interface Account {
  readonly id: string;
  readonly username: string;
  readonly email: string;
  readonly isVerified: boolean;
  readonly role: "enduser" | "supervisor" | "admin";
}

export interface Balance {
  readonly totalCredits: number;
  readonly availableCredits: number;
  readonly reservedCredits: number;
  readonly activeAllocations: readonly {
    readonly id: string;
    readonly credits: number;
    readonly remaining: number;
    readonly expiresAt: string;
    readonly allocatedAt: string;
  }[];
  readonly [member: string]: unknown;
}

export interface Model {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly maxTokens: number;
  readonly contextTokens: number;
  readonly available: boolean;
  readonly [member: string]: unknown;
}

export interface Message {
  readonly id: string;
  readonly role: string;
  readonly content: string;
  readonly streamingSessionId: string | null;
  readonly tokens: number | null;
  readonly createdAt: string;
}

export interface ChatSession {
  readonly sessionId: string;
  readonly title: string;
  readonly modelId: string | null;
  readonly createdAt: string;
  readonly updatedAt: string;
  readonly [member: string]: unknown;
}

export interface ChatSessionRead extends ChatSession {
  readonly messages: readonly Message[];
  readonly metadata: {
    readonly streamingSessionId: string | null;
    readonly lastTokensUsed: number | null;
    readonly totalTokensUsed: number;
    readonly activeStreamingSession: string | null;
  };
}

export interface ChatSessionPage {
  readonly sessions: readonly ChatSession[];
  readonly pagination: {
    readonly total: number;
    readonly pages: number;
    readonly currentPage: number;
    readonly perPage: number;
  };
}

/** The server's answer to what a client says it has got; `matches` is false where the text is another. */
export interface Acknowledged {
  readonly message: string;
  readonly sessionId: string;
  readonly tokensUsed: number;
  readonly matches: boolean;
  readonly comparison: "exact" | "prefix" | "different";
  readonly receipt: Receipt;
}
